/* What a guest does with vsock in the tests: `vsock connect PORT` copies standard input to the host's port and what comes back to
 * standard output; `vsock serve PORT COUNT` answers so many connections at once, each with what it got. */
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static char buffer[65536];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void put(int fd, const char *bytes, ssize_t len)
{
	for (ssize_t n; len > 0; bytes += n, len -= n)
		if ((n = write(fd, bytes, len)) < 0)
			fail("write");
}

/* Until both directions have ended. */
static void copy(int in, int out, int socket)
{
	int sending = 1, receiving = 1;

	while (sending || receiving) {
		struct pollfd fds[2] = {
			{ .fd = sending ? in : -1, .events = POLLIN },
			{ .fd = receiving ? socket : -1, .events = POLLIN },
		};
		if (poll(fds, 2, -1) < 0)
			fail("poll");
		if (fds[0].revents) {
			ssize_t n = read(in, buffer, sizeof buffer);
			if (n < 0)
				fail("read");
			put(socket, buffer, n);
			if (n == 0) {
				shutdown(socket, SHUT_WR);
				sending = 0;
			}
		}
		if (fds[1].revents) {
			ssize_t n = read(socket, buffer, sizeof buffer);
			if (n < 0)
				fail("receive");
			put(out, buffer, n);
			receiving = n > 0;
		}
	}
}

static void answer(int socket)
{
	ssize_t n;

	while ((n = read(socket, buffer, sizeof buffer)) > 0)
		put(socket, buffer, n);
	if (n < 0)
		fail("receive");
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = atoi(argv[2]) };
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0)
		fail("socket");
	if (!strcmp(argv[1], "connect")) {
		if (connect(fd, (struct sockaddr *)&address, sizeof address))
			fail("connect");
		copy(0, 1, fd);
		return 0;
	}
	address.svm_cid = VMADDR_CID_ANY;
	if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 128))
		fail("listen");
	puts("serving=yes");
	fflush(stdout);
	for (int left = atoi(argv[3]); left > 0; left--) {
		int connection = accept(fd, NULL, NULL);
		if (connection < 0)
			fail("accept");
		if (fork() == 0) {
			answer(connection);
			return 0;
		}
		close(connection);
	}
	int failed = 0;
	for (int status; wait(&status) > 0;)
		failed |= status;
	return failed != 0;
}
