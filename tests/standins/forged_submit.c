/* An attacker's program: submits a batch job without sbatch, and so without our plugin's checks.
 *
 *   forged_submit SCRIPT OUTPUT [-q] [NAME=VALUE | NAME@COUNT] ...
 *
 * Each NAME=VALUE goes unchanged into the job-control environment, which Slurm gives to Prolog and Epilog with a SPANK_
 * prefix. NAME@COUNT is a value of that many bytes. After -q they go into the job's own environment instead. Prints the
 * job's id, or Slurm's and job_submit's reason with exit status 1.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>

#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(26, 5, 0)
#define JOB_ID(response) ((response)->step_id.job_id)
#else
#define JOB_ID(response) ((response)->job_id)
#endif

static char *read_file(const char *path)
{
	static char text[65536];
	FILE *file = fopen(path, "r");

	if (file == NULL || fread(text, 1, sizeof text - 1, file) == 0)
		exit(2);
	fclose(file);
	return text;
}

static char *variable(const char *word)
{
	const char *at = strchr(word, '@');
	const size_t name_length = at == NULL ? 0 : (size_t)(at - word);
	const size_t count = at == NULL ? 0 : strtoul(at + 1, NULL, 10);
	char *made;

	if (at == NULL || strchr(word, '=') != NULL)
		return strdup(word);
	made = malloc(name_length + count + 2);
	if (made == NULL)
		exit(2);
	memcpy(made, word, name_length);
	made[name_length] = '=';
	memset(made + name_length + 1, 'x', count);
	made[name_length + 1 + count] = '\0';
	return made;
}

int main(int argc, char *argv[])
{
	submit_response_msg_t *response = NULL;
	char *control[4096];
	char *own[4096] = {"PATH=/usr/bin:/bin"};
	uint32_t own_count = 1;
	uint32_t control_count = 0;
	int is_own = 0;
	job_desc_msg_t job;

	if (argc < 3)
		return 2;
	for (int i = 3; i < argc; i++) {
		if (strcmp(argv[i], "-q") == 0)
			is_own = 1;
		else if (is_own)
			own[own_count++] = variable(argv[i]);
		else
			control[control_count++] = variable(argv[i]);
	}
	slurm_init(NULL);
	slurm_init_job_desc_msg(&job);
	job.name = "forged";
	job.script = read_file(argv[1]);
	job.std_out = argv[2];
	job.work_dir = "/";
	job.user_id = getuid();
	job.group_id = getgid();
	job.min_nodes = job.max_nodes = 1;
	job.num_tasks = 1;
	job.time_limit = 5;
	job.req_nodes = "n1";
	job.environment = own;
	job.env_size = own_count;
	job.spank_job_env = control;
	job.spank_job_env_size = control_count;
	if (slurm_submit_batch_job(&job, &response) != 0) {
		fprintf(stderr, "%s\n", slurm_strerror(errno));
		if (response && response->job_submit_user_msg)
			fprintf(stderr, "%s\n", response->job_submit_user_msg);
		return 1;
	}
	printf("%u\n", JOB_ID(response));
	return 0;
}
