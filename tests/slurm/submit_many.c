/*
 * Submits many held batch jobs, one after the other: submit_many COUNT [ENTRY...], with the entries as the SPANK
 * environment. Prints why the last one was refused, if it was, and then the longest time of a submission in microseconds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>

static long now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

int main(int argc, char **argv)
{
	char script[] = "#!/bin/sh\n";
	char *environment[] = { "PATH=/usr/bin:/bin", NULL };
	char directory[4096];
	long longest_us = 0;
	int count = argc > 1 ? atoi(argv[1]) : 0;

	while (count-- > 0) {
		job_desc_msg_t job;
		submit_response_msg_t *answer = NULL;
		long began_us = now_us();

		slurm_init_job_desc_msg(&job);
		job.user_id = getuid();
		job.group_id = getgid();
		job.script = script;
		job.environment = environment;
		job.env_size = 1;
		job.work_dir = getcwd(directory, sizeof directory);
		job.min_nodes = 1;
		job.priority = 0; /* held: none of them runs */
		job.spank_job_env = argv + 2;
		job.spank_job_env_size = (uint32_t) (argc - 2);
		if (slurm_submit_batch_job(&job, &answer) != SLURM_SUCCESS && count == 0)
			printf("%s\n%s\n", slurm_strerror(slurm_get_errno()),
			       answer && answer->job_submit_user_msg ? answer->job_submit_user_msg : "");
		slurm_free_submit_response_response_msg(answer);
		if (now_us() - began_us > longest_us)
			longest_us = now_us() - began_us;
	}
	printf("%ld us\n", longest_us);
	return EXIT_SUCCESS;
}
