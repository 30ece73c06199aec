"""`python -m pipeline_local`: what torchrun and deepspeed start on every rank."""

from pipeline_local.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
