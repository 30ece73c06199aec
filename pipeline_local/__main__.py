"""`python -m pipeline_local`: what torchrun and deepspeed start on every rank."""

from pipeline_local.orphan import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()
    from pipeline_local.cli import main

    raise SystemExit(main())
