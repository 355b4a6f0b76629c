"""The command line: arguments, configs and the jobs of each command."""
