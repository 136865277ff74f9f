"""The subcommands of `rewardserve` that belong to the server: arguments in, exit code out."""
