// SPDX-License-Identifier: Apache-2.0
/* Names that this plugin shares with Slurm, with the hooks or with its own other half: variables and the option. */
#ifndef SPANK_QRMI_NAMES_H
#define SPANK_QRMI_NAMES_H

/* Prefix of each log line. */
#define LOG "spank_qrmi"

/* The job's selection in the job-control environment, set at submission. Prolog and Epilog read it as SPANK_QRMI_QPU. */
#define JOB_SELECTION "QRMI_QPU"

/* Slurm repeats the job-control environment under this prefix in a batch script and in salloc's shell (_set_spank_env()
 * in sbatch and salloc). */
#define JOB_CONTROL_IN_TASKS "SLURM_SPANK_"
#define JOB_SELECTION_IN_TASKS JOB_CONTROL_IN_TASKS JOB_SELECTION

/* The step's selection in its tasks' environment, set by slurmstepd. TaskProlog and the user's program read it. */
#define STEP_SELECTION "QRMI_SLURM_QPU"

/* The hooks' state directory, set by slurmstepd in steps that have a selection. TaskProlog starts as a shell and finds
 * the job's exports through it, without reading plugstack.conf. */
#define STATE_DIR "QRMI_SLURM_STATE_DIR"

/* In a step whose environment does not tell whether its job has QPUs, the job's id: TaskProlog looks for its folder. That
 * is a step that was attached from elsewhere, and one in a later component of a heterogeneous job, where SLURM_JOB_ID is
 * the first component's id (het_job_id in src/slurmd/slurmstepd/task.c and src/common/env.c). */
#define STEP_JOB_ID "QRMI_SLURM_JOB_ID"

/* The job in which srun was started, and whether --qpu is on its command line, from srun to slurmstepd. An environment
 * that belongs to another job than the step has that job's selection. The names start with SLURM because
 * `srun --export=NONE` drops all others (env_array_merge_slurm_spank() in env.c). */
#define SRUN_JOB_ID "SLURM_QRMI_SRUN_JOB_ID"
#define SRUN_ASKED "SLURM_QRMI_SRUN_ASKED"

/* Slurm sets it in the environment of a job that is submitted, by srun too, but not in `srun --jobid=N`
 * (set_submit_dir_env() in env.c, up to 24.11 in srun's srun_job.c). */
#define SUBMIT_HOST "SLURM_SUBMIT_HOST"

/* Up to 24.11 steps of `srun --jobid=N` from outside of the job do not have it. */
#define CLUSTER_NAME "SLURM_CLUSTER_NAME"

/* The job for which this plugin has run TaskProlog in this step: where slurm.conf names it too, it has nothing to do then. A
 * user who sets it themselves has a job without QPUs. */
#define TASK_PROLOG_RAN "QRMI_SLURM_TASK_PROLOG"

/* For a TaskProlog that this plugin runs: the descriptor with the step's environment, and its time in seconds. */
#define ENVIRONMENT_FD "QRMI_SLURM_ENVIRONMENT_FD"
#define TIME_LIMIT "QRMI_SLURM_TIME_LIMIT"

/* The job whose QPUs an environment has, as QRMI's programs read it. */
#define OUTER_JOB_ID "QRMI_JOB_ID"

/* Fingerprints of the site's values that a task was given, so that they are not taken for the user's own. */
#define GIVEN "QRMI_SLURM_GIVEN"

/* The selections of all components of `srun --qpu=a ... : ...`, one per line, from srun to slurmstepd. The name starts
 * with SLURM because `srun --export=NONE` drops all others (env_array_merge_slurm_spank() in env.c). */
#define HET_SELECTIONS "SLURM_QRMI_HET_QPU"

/* --qpu as Slurm passes it on in the job-control environment (_opt_env_name() in spank.c). */
#define OPTION_IN_JOB_CONTROL "_SLURM_SPANK_OPTION_spank_qrmi_qpu"

/* --qpu as sbatch, salloc and srun read it from their environment (spank_process_env_options() in spank.c). */
#define OPTION_IN_ENVIRONMENT JOB_CONTROL_IN_TASKS OPTION_IN_JOB_CONTROL

#endif
