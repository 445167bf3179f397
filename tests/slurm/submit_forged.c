/*
 * Submits a batch job with its arguments as the SPANK environment. A user's own program may do so, and the site's plugins
 * do not run in it. Prints the job's id, or why it was refused.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>

int main(int argc, char **argv)
{
	char script[] = "#!/bin/sh\nenv\n";
	char *environment[] = { "PATH=/usr/bin:/bin", NULL };
	char directory[4096];
	job_desc_msg_t job;
	submit_response_msg_t *answer = NULL;

	slurm_init(NULL);
	slurm_init_job_desc_msg(&job);
	job.user_id = getuid();
	job.group_id = getgid();
	job.script = script;
	job.environment = environment;
	job.env_size = 1;
	job.work_dir = getcwd(directory, sizeof directory);
	job.min_nodes = 1;
	job.spank_job_env = argv + 1;
	job.spank_job_env_size = (uint32_t) (argc - 1);
	if (slurm_submit_batch_job(&job, &answer) != SLURM_SUCCESS) {
		fprintf(stderr, "%s\n", slurm_strerror(errno));
		if (answer && answer->job_submit_user_msg)
			fprintf(stderr, "%s\n", answer->job_submit_user_msg);
		return EXIT_FAILURE;
	}
	printf("%u\n", answer->job_id);
	return EXIT_SUCCESS;
}
