// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436 /* on every machine; Linux 5.9 */
#endif

/* How long a process that was killed may take to end. One that its user traces ends later; it is left alone then. */
#define END_MS 200

/* How often to look whether the program has ended, while somebody keeps its output open. */
#define LOOK_MS 10

/* How often to read before looking at the time again: a writer of single bytes must not keep slurmstepd reading. A pipe
 * holds at most 1 MiB (fs.pipe-max-size), so that this is enough for all that an ended program has left. */
#define READS_AT_ONCE 128

/* No descriptor that is moved to its place may be in another one's. */
#define SPARE_FD 10

const char *program_fault(const char *path)
{
	struct stat file;

	if (path[0] != '/')
		return "is not an absolute path";
	if (stat(path, &file) != 0)
		return errno == ENOENT || errno == ENOTDIR ? "does not exist on this node" : "cannot be read on this node";
	if (!S_ISREG(file.st_mode))
		return "is not a file";
	if (file.st_uid != 0)
		return "does not belong to root";
	if ((file.st_mode & (S_IWGRP | S_IWOTH)) != 0)
		return "can be changed by others than root";
	if ((file.st_mode & S_IXOTH) == 0)
		return "is not executable for users";
	return NULL;
}

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * ---- in the child ----
 *
 * slurmstepd has several threads, so that only async-signal-safe functions may be called here (fork(2)). The C library's
 * setuid() and its like are not: they would look for the other threads.
 */

static void close_from(unsigned int first)
{
	struct rlimit limit;

	if (syscall(SYS_close_range, first, ~0U, 0) == 0 || getrlimit(RLIMIT_NOFILE, &limit) != 0)
		return;
	for (rlim_t fd = first; fd < limit.rlim_max; fd++) /* before Linux 5.9 */
		close((int)fd);
}

/* Slurm protects slurmstepd from the out-of-memory killer; what runs as the user must not be. Where this fails, it is not
 * protected: every process may give its protection up. */
static void become_killable(void)
{
	const int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	(void)!write(fd, "0", 1);
	close(fd);
}

/* Gives up everything that root has, for good. Until execve() its memory is a copy of slurmstepd's, which the user may not
 * read; the kernel protects it by itself unless fs.suid_dumpable is set. */
static bool become_user(uid_t uid, gid_t gid)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { { 0 } };

	for (int capability = 0; capability < 64; capability++)
		prctl(PR_CAPBSET_DROP, capability, 0, 0, 0); /* fails beyond the last one */
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && syscall(SYS_setgroups, 0, NULL) == 0 &&
	       syscall(SYS_setresgid, gid, gid, gid) == 0 && syscall(SYS_setresuid, uid, uid, uid) == 0 &&
	       prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 &&
	       syscall(SYS_capset, &header, none) == 0 && (uid == 0 || syscall(SYS_setresuid, 0, 0, 0) != 0);
}

static void set_limits(long time_ms)
{
	const rlim_t seconds = (rlim_t)time_ms / 1000 + 1;
	const struct rlimit cpu = { seconds, seconds };
	const struct rlimit none = { 0, 0 };

	setrlimit(RLIMIT_CPU, &cpu);
	setrlimit(RLIMIT_CORE, &none);
}

static _Noreturn void program_exec(const struct program *program, int output, int data)
{
	char *arguments[] = { program->path, NULL };
	sigset_t no_signals;

	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
	setsid();
	become_killable();
	if (dup2(output, 1) < 0 || dup2(output, 2) < 0 || dup2(data, PROGRAM_DATA_FD) < 0)
		_exit(PROGRAM_NOT_EXECUTABLE);
	close(0);
	close(3);
	close_from(PROGRAM_DATA_FD + 1);
	if (open("/dev/null", O_RDONLY) != 0)
		_exit(PROGRAM_NOT_EXECUTABLE);
	if (!become_user(program->uid, program->gid) || chdir("/") != 0)
		_exit(PROGRAM_NOT_EXECUTABLE);
	set_limits(program->time_ms);
	umask(077);
	sigemptyset(&no_signals);
	sigprocmask(SIG_SETMASK, &no_signals, NULL);
	execve(program->path, arguments, program->environment);
	_exit(errno == ENOENT ? PROGRAM_NOT_FOUND : PROGRAM_NOT_EXECUTABLE);
}

/* ---- in slurmstepd ---- */

/* Moves a descriptor out of the way; -1 if that fails. */
static int moved(int fd)
{
	const int copy = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, SPARE_FD);

	if (fd >= 0)
		close(fd);
	return copy;
}

/* A file in memory with the data, to be read from its beginning; -1 if there can be none. */
static int data_file(const char *data, size_t bytes)
{
	const int fd = moved(memfd_create("qrmi-slurm", MFD_CLOEXEC));

	for (size_t done = 0; fd >= 0 && done < bytes;) {
		const ssize_t written = write(fd, data + done, bytes - done);

		if (written <= 0) {
			close(fd);
			return -1;
		}
		done += (size_t)written;
	}
	if (fd >= 0)
		lseek(fd, 0, SEEK_SET);
	return fd;
}

/*
 * In a process-id namespace of its own, with which everything ends that the program has started. Otherwise its user, who may
 * change what it runs, could leave a process behind that no job's end reaches: slurmstepd's children are not yet in the
 * step's container. Where that is not allowed, as in a container, it is a plain fork.
 */
static pid_t fork_alone(void)
{
	const long child = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);

	return child >= 0 ? (pid_t)child : fork();
}

/* Starts the program and returns its process id, or -1 with errno. *output is the reading end of its output. */
static pid_t program_start(const struct program *program, int *output)
{
	const int data = data_file(program->data, program->data_bytes);
	sigset_t all_signals;
	sigset_t before;
	int ends[2];
	pid_t child = -1;
	int reason;

	if (data < 0)
		return -1;
	if (pipe2(ends, O_CLOEXEC) != 0) {
		close(data);
		return -1;
	}
	ends[1] = moved(ends[1]);
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	/* slurmstepd's handlers must not run in a process that its user may signal. */
	sigfillset(&all_signals);
	pthread_sigmask(SIG_SETMASK, &all_signals, &before);
	if (ends[1] >= 0)
		child = fork_alone();
	if (child == 0)
		program_exec(program, ends[1], data);
	reason = errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	close(data);
	if (ends[1] >= 0)
		close(ends[1]);
	if (child < 0)
		close(ends[0]);
	*output = ends[0];
	errno = reason;
	return child;
}

/* Whether the program has ended; it is not reaped, so that its number stays its own. */
static bool has_ended(pid_t child, siginfo_t *how)
{
	how->si_pid = 0;
	return waitid(P_PID, (id_t)child, how, WEXITED | WNOHANG | WNOWAIT) != 0 || how->si_pid == child;
}

/* Reads what is there; returns whether there may be more later. */
static bool read_output(int fd, size_t max_bytes, struct program_result *result)
{
	char piece[16384];

	for (int reads = 0; reads < READS_AT_ONCE; reads++) {
		const ssize_t got = read(fd, piece, sizeof piece);
		char *output;

		if (got < 0)
			return errno == EAGAIN || errno == EINTR;
		if (got == 0)
			return false;
		if (result->bytes + (size_t)got > max_bytes) {
			result->end = PROGRAM_TOO_MUCH;
			return false;
		}
		output = realloc(result->output, result->bytes + (size_t)got);
		if (output == NULL) {
			result->end = PROGRAM_TOO_MUCH;
			return false;
		}
		memcpy(output + result->bytes, piece, (size_t)got);
		result->output = output;
		result->bytes += (size_t)got;
	}
	return true;
}

static void pause_ms(long ms)
{
	const struct timespec pause = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&pause, NULL);
}

/* Kills the program with what it has started, as far as that has not got away, and reaps it, unless it is traced. */
static void end_program(pid_t child)
{
	const long until_ms = now_ms() + END_MS;

	kill(-child, SIGKILL);
	kill(child, SIGKILL);
	while (waitpid(child, NULL, WNOHANG) == 0 && now_ms() < until_ms)
		pause_ms(1);
}

void program_run(const struct program *program, struct program_result *result)
{
	const long until_ms = now_ms() + program->time_ms;
	bool is_open = true;
	siginfo_t how;
	pid_t child;
	int fd;

	*result = (struct program_result){ .end = PROGRAM_EXITED };
	child = program_start(program, &fd);
	if (child < 0) {
		result->end = PROGRAM_NOT_STARTED;
		result->status = errno;
		return;
	}
	/* Ended is looked at first: what a program has printed before it ended is there to be read then. */
	for (bool ended = false; !ended && result->end == PROGRAM_EXITED;) {
		struct pollfd readable = { .fd = is_open ? fd : -1, .events = POLLIN };

		if (now_ms() >= until_ms)
			result->end = PROGRAM_TOO_LONG;
		poll(&readable, 1, is_open ? LOOK_MS : 1);
		ended = has_ended(child, &how);
		if (is_open)
			is_open = read_output(fd, program->output_max_bytes, result);
		if (ended && result->end != PROGRAM_TOO_MUCH) {
			result->end = PROGRAM_EXITED;
			result->status = how.si_pid != child	     ? PROGRAM_NOT_EXECUTABLE
					 : how.si_code == CLD_EXITED ? how.si_status
								     : 128 + how.si_status;
		}
	}
	close(fd);
	end_program(child);
}
