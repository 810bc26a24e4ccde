"""`python -m mmsurgery_cli`, and `torchrun -m mmsurgery_cli`: the same as `mmsurgery`."""

from mmsurgery_cli.main import main

if __name__ == "__main__":
    main()
