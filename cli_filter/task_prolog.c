// SPDX-License-Identifier: Apache-2.0
#include "task_prolog.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "directives.h"
#include "names.h"
#include "program.h"
#include "settings.h"
#include "text.h"

/* slurmstepd starts no task meanwhile. A step that is cancelled before it runs drains its node if it has not ended after
 * UnkillableStepTimeout, so a third of that is the most (step_terminate_monitor.c in src/slurmd/slurmstepd). */
#define TIME_MAX_S 20L

/* The exit status of a task that must not run, as with TaskProlog= of slurm.conf. */
#define REFUSED 1

/* What a job may read in its output: a few sentences of TaskProlog's. */
#define PRINTED_MAX_BYTES 65536U

#define TELL_AN_ADMIN "; please tell an admin"

/* What the program's shell reads; everything else is in its data. */
static const char *const shell_variables[] = {
	JOB_SELECTION_IN_TASKS, STEP_SELECTION, STEP_JOB_ID, STATE_DIR, CLUSTER_NAME, "SLURM_JOB_RESTART_COUNT",
	"SLURM_JOB_START_TIME", "SRUN_DEBUG", "RUST_LOG", OUTER_JOB_ID, "QRMI_JOB_QPU_RESOURCES", "QRMI_SLURM_BROKER",
};
#define SHELL_VARIABLES (sizeof shell_variables / sizeof shell_variables[0])

/* What slurmstepd sets later, in each task, and what is ours. */
#define OWN_VARIABLES 7

/* For the tasks, which slurmstepd forks later. */
static struct {
	bool is_refused;
	size_t bytes;
	char printed[PRINTED_MAX_BYTES];
} outcome;

static void print_line(const char *text)
{
	const size_t length = strlen(text);

	if (length + 1 > PRINTED_MAX_BYTES - outcome.bytes)
		return;
	memcpy(outcome.printed + outcome.bytes, text, length);
	outcome.printed[outcome.bytes + length] = '\n';
	outcome.bytes += length + 1;
}

/* Tells the admin, and the user if their job should have QPUs. */
static void failed(const struct step *step, const char *reason)
{
	char sentence[1024];

	slurm_error(LOG ": job %u: TaskProlog %s %s", step->job_id, step->program, reason);
	if (!step->has_qpus)
		return;
	snprintf(sentence, sizeof sentence, "qrmi-slurm: no QPU: TaskProlog %s %s" TELL_AN_ADMIN, step->program, reason);
	print_line(sentence);
	outcome.is_refused = true;
}

/* ---- the program's environment ---- */

/* The variable's entry in an environment; NULL if it is not set. */
static char *entry_of(char **environment, const char *name)
{
	const size_t length = strlen(name);

	for (; environment != NULL && *environment != NULL; environment++)
		if (strncmp(*environment, name, length) == 0 && (*environment)[length] == '=')
			return *environment;
	return NULL;
}

static bool is_same_variable(const char *entry, const char *other)
{
	const size_t length = strcspn(entry, "=");

	return strncmp(entry, other, length + 1) == 0;
}

/* The step's environment as data, `NAME=value` with a NUL behind each, with our own in place of the same variables. */
static char *as_data(char **environment, char *const *own, size_t *bytes)
{
	size_t size = 1;
	char *data;
	char *at;

	for (char **entry = environment; entry != NULL && *entry != NULL; entry++)
		size += strlen(*entry) + 1;
	for (size_t i = 0; i < OWN_VARIABLES; i++)
		size += strlen(own[i]) + 1;
	at = data = malloc(size);
	if (data == NULL)
		return NULL;
	for (size_t i = 0; i < OWN_VARIABLES; i++)
		at = stpcpy(at, own[i]) + 1;
	for (char **entry = environment; entry != NULL && *entry != NULL; entry++) {
		bool is_own = false;

		for (size_t i = 0; i < OWN_VARIABLES; i++)
			is_own = is_own || is_same_variable(own[i], *entry);
		if (!is_own)
			at = stpcpy(at, *entry) + 1;
	}
	*bytes = (size_t)(at - data);
	return data;
}

/* ---- its output ---- */

static void apply(spank_t sp, const struct step *step, char *output, size_t bytes)
{
	struct directive directive;

	for (char *line = output; (line = directive_next(line, output + bytes, &directive)) != NULL;) {
		if (directive.kind == DIRECTIVE_PRINT) {
			print_line(directive.value);
		} else if (directive.kind == DIRECTIVE_UNSET) {
			spank_unsetenv(sp, directive.name);
		} else if (directive.kind == DIRECTIVE_EXPORT &&
			   spank_setenv(sp, directive.name, directive.value, 1) != ESPANK_SUCCESS) {
			failed(step, "printed a variable that Slurm does not take");
			return;
		}
	}
}

static void read_result(spank_t sp, const struct step *step, const struct program_result *result, long time_s)
{
	const char *fault = result->bytes > 0 ? directives_fault(result->output, result->bytes) : "printed nothing";
	char reason[256] = "";

	if (result->end == PROGRAM_TOO_MUCH)
		snprintf(reason, sizeof reason, "printed more than 4 MiB");
	else if (result->end == PROGRAM_TOO_LONG)
		snprintf(reason, sizeof reason, "did not end within %ld s", time_s);
	else if (result->end == PROGRAM_NOT_STARTED)
		snprintf(reason, sizeof reason, "could not be started: %s", strerror(result->status));
	else if (result->status == PROGRAM_NOT_FOUND)
		snprintf(reason, sizeof reason, "is missing, or the program that its first line names");
	else if (result->status == PROGRAM_NOT_EXECUTABLE)
		snprintf(reason, sizeof reason, "cannot be run by users");
	else if (result->status != 0 && result->status != REFUSED)
		snprintf(reason, sizeof reason, "ended with exit status %d", result->status);
	else if (fault != NULL)
		snprintf(reason, sizeof reason, "%s", fault);
	if (reason[0] != '\0') {
		failed(step, reason);
		return;
	}
	outcome.is_refused = result->status == REFUSED && step->has_qpus;
	apply(sp, step, result->output, result->bytes);
}

void task_prolog_run(spank_t sp, const struct step *step)
{
	static char path[] = "PATH=/usr/bin:/bin";
	static char locale[] = "LC_ALL=C";
	static char node[sizeof "SLURMD_NODENAME=" + 256] = "SLURMD_NODENAME=";
	static char rank[] = "SLURM_PROCID=0";
	char job_id[sizeof "SLURM_JOB_ID=4294967295"];
	char environment_fd[sizeof ENVIRONMENT_FD "=4294967295"];
	char time[sizeof TIME_LIMIT "=4294967295"];
	char *own[OWN_VARIABLES] = { path, locale, node, rank, job_id, environment_fd, time };
	char *variables[OWN_VARIABLES + SHELL_VARIABLES + 1];
	const long third_s = settings_unkillable_step_timeout_s() / 3;
	const long time_s = third_s < 1 ? 1 : third_s < TIME_MAX_S ? third_s : TIME_MAX_S;
	const char *fault = program_fault(step->program);
	struct program program = { .environment = variables, .time_ms = time_s * 1000, .output_max_bytes = DIRECTIVES_MAX_BYTES };
	struct program_result result;
	char **environment;
	char *data;
	size_t count = 0;

	if (fault == NULL && (spank_get_item(sp, S_JOB_UID, &program.uid) != ESPANK_SUCCESS ||
			      spank_get_item(sp, S_JOB_GID, &program.gid) != ESPANK_SUCCESS ||
			      spank_get_item(sp, S_JOB_ENV, &environment) != ESPANK_SUCCESS))
		fault = "cannot be run: Slurm does not say for whom";
	if (fault != NULL) {
		failed(step, fault);
		return;
	}
	settings_node_name(node + strlen("SLURMD_NODENAME="), sizeof node - strlen("SLURMD_NODENAME="));
	snprintf(job_id, sizeof job_id, "SLURM_JOB_ID=%u", step->job_id);
	snprintf(environment_fd, sizeof environment_fd, ENVIRONMENT_FD "=%d", PROGRAM_DATA_FD);
	snprintf(time, sizeof time, TIME_LIMIT "=%ld", time_s);
	for (size_t i = 0; i < OWN_VARIABLES; i++)
		variables[count++] = own[i];
	for (size_t i = 0; i < SHELL_VARIABLES; i++) {
		variables[count] = entry_of(environment, shell_variables[i]);
		if (variables[count] != NULL)
			count++;
	}
	variables[count] = NULL;
	data = as_data(environment, own, &program.data_bytes);
	program.data = data;
	program.path = strdup(step->program);
	if (data == NULL || program.path == NULL) {
		failed(step, "cannot be run: there is no memory left");
	} else {
		program_run(&program, &result);
		read_result(sp, step, &result, time_s);
		free(result.output);
	}
	free(data);
	free(program.path);
}

void task_prolog_begin_task(spank_t sp)
{
	uint32_t rank = 0;
	size_t done = 0;

	if (outcome.bytes > 0 && spank_get_item(sp, S_TASK_GLOBAL_ID, &rank) == ESPANK_SUCCESS && rank == 0) {
		while (done < outcome.bytes) {
			const ssize_t written = write(STDOUT_FILENO, outcome.printed + done, outcome.bytes - done);

			if (written <= 0)
				break;
			done += (size_t)written;
		}
	}
	if (outcome.is_refused)
		_exit(REFUSED);
}
