"""Several processes: plain data parallelism, FSDP2 and DeepSpeed ZeRO."""
