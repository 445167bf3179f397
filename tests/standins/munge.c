/* A stand-in for libmunge.so.2, with which QRMI identifies the caller to a Pasqal Warden: the "credential" is the uid. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int munge_encode(char **cred, void *ctx, const void *data, int length);
const char *munge_strerror(int error);

int munge_encode(char **cred, void *ctx, const void *data, int length)
{
	(void)ctx;
	(void)data;
	(void)length;
	if (getenv("QRMI_FAKE_MUNGE_DOWN") != NULL)
		return 6; /* EMUNGE_SOCKET of munge.h */
	*cred = malloc(32);
	if (*cred == NULL)
		return 1;
	snprintf(*cred, 32, "uid-%u", (unsigned int)getuid());
	return 0;
}

const char *munge_strerror(int error)
{
	(void)error;
	return "Socket communication error";
}
