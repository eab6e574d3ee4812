"""From torch to a graph whose norm layers are nodes: the one place that knows both."""
