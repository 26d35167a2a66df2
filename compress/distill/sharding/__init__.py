"""Training in several processes: replicas, FSDP2 and DeepSpeed ZeRO."""
