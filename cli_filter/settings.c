// SPDX-License-Identifier: Apache-2.0
#include "settings.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "text.h"

#define SLURM_CONF_DEFAULT "/etc/slurm/slurm.conf"
#define UNKILLABLE_STEP_TIMEOUT_S 60

/* Includes in includes; Slurm follows them without a limit, and a loop would hang every step. */
#define INCLUDES_MAX 16

/* The socket on which slurmstepd listens is among its first descriptors; a search through all of them would take long. */
#define DESCRIPTORS_MAX 256

static struct {
	bool are_read;
	char cluster_name[256];
	long unkillable_step_timeout_s;
} settings;

/* The value of NAME=value, without blanks and quotes; NULL if the line sets something else. */
static char *value_of(char *line, const char *name)
{
	char *at = line + strlen(name);

	if (strncasecmp(line, name, strlen(name)) != 0)
		return NULL;
	at += strspn(at, " \t");
	if (*at != '=')
		return NULL;
	at += 1 + strspn(at + 1, " \t\"");
	at[strcspn(at, " \t\"")] = '\0';
	return at;
}

static void read_file(const char *path, unsigned int depth);

/* A relative name is one beside the including file. */
static void read_include(const char *path, char *name, unsigned int depth)
{
	const char *const folder_end = strrchr(path, '/');
	char included[4096];

	name += strspn(name, " \t");
	for (size_t length = strlen(name); length > 0 && isspace((unsigned char)name[length - 1]); length--)
		name[length - 1] = '\0';
	snprintf(included, sizeof included, "%.*s%s",
		 name[0] == '/' || folder_end == NULL ? 0 : (int)(folder_end - path + 1), path, name);
	read_file(included, depth + 1);
}

/* Reads slurm.conf or a file that it includes, as slurm/conf_file.py does. */
static void read_file(const char *path, unsigned int depth)
{
	FILE *file = depth <= INCLUDES_MAX ? fopen(path, "re") : NULL;
	char *text = NULL;
	size_t size = 0;

	if (file == NULL)
		return;
	while (getline(&text, &size, file) > 0) {
		char *line = text + strspn(text, " \t");
		const char *value;

		line[strcspn(line, "#\n")] = '\0';
		if (strncasecmp(line, "include ", strlen("include ")) == 0) {
			read_include(path, line + strlen("include "), depth);
		} else if ((value = value_of(line, "ClusterName")) != NULL) {
			snprintf(settings.cluster_name, sizeof settings.cluster_name, "%s", value);
		} else if ((value = value_of(line, "UnkillableStepTimeout")) != NULL) {
			settings.unkillable_step_timeout_s = strtol(value, NULL, 10);
		}
	}
	free(text);
	fclose(file);
}

/*
 * From the file, whose path slurmd has put into the environment, which is not the job's. In memory, Slurm has them in a
 * slurm_conf_t, whose layout differs between releases, and this plugin is built once for all of them. Its own function
 * for `scontrol show config`, slurm_ctl_conf_2_key_pairs(), ends slurmstepd on 24.11.
 */
static void read_settings(void)
{
	const char *path = getenv("SLURM_CONF");

	if (settings.are_read)
		return;
	settings.are_read = true;
	settings.unkillable_step_timeout_s = UNKILLABLE_STEP_TIMEOUT_S;
	read_file(path != NULL && path[0] != '\0' ? path : SLURM_CONF_DEFAULT, 0);
	for (char *at = settings.cluster_name; *at != '\0'; at++) /* as Slurm does */
		*at = (char)tolower((unsigned char)*at);
}

const char *settings_cluster_name(void)
{
	read_settings();
	return settings.cluster_name[0] != '\0' ? settings.cluster_name : NULL;
}

long settings_unkillable_step_timeout_s(void)
{
	read_settings();
	return settings.unkillable_step_timeout_s;
}

/*
 * Slurm sets SLURMD_NODENAME later, in each task (exec_task() in src/slurmd/slurmstepd/task.c). Until then the name is in
 * that of slurmstepd's socket, <SlurmdSpoolDir>/<node>_<job>.<step>, by which slurmd finds its steps again after a restart
 * (stepd_available() in src/common/stepd_api.c).
 */
void settings_node_name(char *name, size_t size)
{
	name[0] = '\0';
	for (int fd = 3; fd < DESCRIPTORS_MAX; fd++) {
		struct sockaddr_un address = { .sun_family = AF_UNSPEC };
		socklen_t length = sizeof address - 1;
		const char *file;
		const char *end;

		if (getsockname(fd, (struct sockaddr *)&address, &length) != 0 || address.sun_family != AF_UNIX)
			continue;
		file = strrchr(address.sun_path, '/');
		end = file != NULL ? strrchr(file, '_') : NULL;
		if (end == NULL || end[1] == '\0' || end[1 + strspn(end + 1, "0123456789.")] != '\0' ||
		    strchr(end, '.') == NULL)
			continue;
		snprintf(name, size, "%.*s", (int)(end - file - 1), file + 1);
		return;
	}
}
