/* Sends a byte by TCP, waits for one, and so on: `turns ADDRESS PORT SECONDS` prints how often in a second. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    double start, end;
    long turns = 0;
    char byte = 'A';

    if (argc != 4)
        return 2;
    address.sin_port = htons(atoi(argv[2]));
    inet_pton(AF_INET, argv[1], &address.sin_addr);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        perror("connect");
        return 1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    start = now();
    do {
        if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1) {
            perror("turn");
            return 1;
        }
        turns++;
        end = now();
    } while (end - start < atof(argv[3]));
    printf("%f\n", turns / (end - start));
    return 0;
}
