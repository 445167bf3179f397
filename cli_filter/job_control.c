// SPDX-License-Identifier: Apache-2.0
#include "job_control.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"
#include "selection.h"
#include "text.h"
#include "variables.h"

/* POSIX leaves the declaration to the program. */
extern char **environ;

/* The user's variables that are in the job-control environment now. Their names are copied, since sbatch --export-file
 * empties the process environment between two components (env_unset_environment()). */
static struct {
	char *names; /* each ends with a NUL */
	size_t bytes;
	size_t cost_bytes; /* in Prolog's environment */
} forwarded;

/* Notes a name and returns the copy; NULL if there is no memory. */
static const char *forwarded_add(const char *name, size_t length)
{
	char *names = realloc(forwarded.names, forwarded.bytes + length + 1);
	char *copy;

	if (names == NULL)
		return NULL;
	copy = names + forwarded.bytes;
	memcpy(copy, name, length);
	copy[length] = '\0';
	forwarded.names = names;
	forwarded.bytes += length + 1;
	return copy;
}

static int put(spank_t sp, const char *name, const char *value)
{
	const spank_err_t rc = spank_job_control_setenv(sp, name, value, 1);

	if (rc != ESPANK_SUCCESS)
		slurm_error(LOG ": cannot pass %s to the job: %s; tell an admin.", name, spank_strerror(rc));
	return (int)rc;
}

static int put_variables(spank_t sp, const char *selection, const char *prefix)
{
	for (const char *qpu = selection, *next; qpu != NULL; qpu = next) {
		const size_t qpu_length = selection_first(qpu, &next);

		for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
			const char *variable;
			const char *name;
			size_t name_length;
			int rc;

			if (!starts_with(*entry, prefix))
				continue;
			variable = *entry + strlen(prefix);
			name_length = strcspn(variable, "=");
			if (!variable_is_forwarded(variable, qpu, qpu_length) || variable_fault(variable, name_length) != NULL)
				continue;
			forwarded.cost_bytes += strlen(variable) + VARIABLE_COST_BYTES;
			if (forwarded.cost_bytes > VARIABLES_MAX_BYTES) {
				slurm_error(LOG ": " TOO_MANY_VARIABLES);
				return ENOMEM;
			}
			name = forwarded_add(variable, name_length);
			if (name == NULL)
				return ENOMEM;
			slurm_debug(LOG ": passing on %s", name);
			rc = put(sp, name, variable + name_length + 1);
			if (rc != ESPANK_SUCCESS)
				return rc;
		}
	}
	return ESPANK_SUCCESS;
}

int job_control_put(spank_t sp, const char *selection, const char *prefix)
{
	const int rc = put(sp, JOB_SELECTION, selection);

	return rc == ESPANK_SUCCESS ? put_variables(sp, selection, prefix) : rc;
}

void job_control_take_back(spank_t sp)
{
	for (size_t at = 0; at < forwarded.bytes; at += strlen(forwarded.names + at) + 1)
		spank_job_control_unsetenv(sp, forwarded.names + at);
	job_control_forget();
	spank_job_control_unsetenv(sp, JOB_SELECTION);
}

void job_control_forget_outer(void)
{
	char **kept = environ;

	if (environ == NULL)
		return;
	for (char **entry = environ; *entry != NULL; entry++) {
		const char *variable = *entry + strlen(JOB_CONTROL_IN_TASKS);

		if (!starts_with(*entry, JOB_CONTROL_IN_TASKS) || !variable_is_qpus(variable))
			*kept++ = *entry;
	}
	*kept = NULL;
}

void job_control_forget(void)
{
	free(forwarded.names);
	forwarded.names = NULL;
	forwarded.bytes = 0;
	forwarded.cost_bytes = 0;
}
