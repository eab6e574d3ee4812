"""What the nodes of the domain augserve mean: functions in standard operators, and the graphs around them."""
