-- The globals that Slurm defines, and those that it looks for.
std = "min"
max_line_length = 120
read_globals = { "slurm" }
globals = {
    "slurm_job_submit",
    "slurm_job_modify",
    "slurm_cli_setup_defaults",
    "slurm_cli_pre_submit",
    "slurm_cli_post_submit",
}
