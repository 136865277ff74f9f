"""`torchrun -m tests.support.fsdp_on_cpu train ...`: the command with FSDP on processes of the CPU.

accelerate shards on GPUs alone. It reads its settings (`FSDP_*`) and shards as there; only the choice of the kind of run changes.
"""

from __future__ import annotations

import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType


def main() -> int:
    """Run the command; the exit code."""
    create = AcceleratorState.__init__

    def create_sharded(self, *args, fsdp_plugin=None, **kwargs):
        create(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        plugin = fsdp_plugin or vars(self).get(
            "fsdp_plugin"
        )  # each new one of these objects shares the state of the first
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin

    AcceleratorState.__init__ = create_sharded
    from rewardserve.cli import main as command

    return command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
