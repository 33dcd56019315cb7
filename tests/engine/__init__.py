"""`make engine`: nano's answers on vLLM against ONNX Runtime's, in an environment of vLLM's own.

process    the engine as a process: made, started, stopped
tasks      nano's tasks, as the personalizer is asked for them
compare    where two paths' answers part, and whether the uniform or the k-th logit explains it
__main__   the run, and its table
"""
