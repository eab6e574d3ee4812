"""Fast paths of the norms behind one dispatch: native (C++, CPU), Triton (CUDA), reference (plain torch)."""
