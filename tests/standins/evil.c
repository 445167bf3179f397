/* A malicious library: wherever it is loaded, it leaves the user's id in the file MARK. */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

__attribute__((constructor)) static void was_loaded(void)
{
	char text[32];
	const int length = snprintf(text, sizeof text, "uid %u\n", (unsigned int)geteuid());
	const int fd = open(MARK, O_WRONLY | O_CREAT | O_APPEND, 0666);

	if (fd >= 0 && write(fd, text, (size_t)length) < 0)
		_exit(1);
	if (fd >= 0)
		close(fd);
}
