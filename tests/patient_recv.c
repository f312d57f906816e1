/* recv(2) that waits up to a millisecond where nothing has come: mlx's ring would ask again at once, and where there are more processes
   than cores those that ask keep those that have something to say from saying it. For LD_PRELOAD, in tests alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

ssize_t recv(int fd, void *buffer, size_t size, int flags) {
    static ssize_t (*ask)(int, void *, size_t, int);
    if (!ask)
        ask = (ssize_t(*)(int, void *, size_t, int))dlsym(RTLD_NEXT, "recv");
    ssize_t got = ask(fd, buffer, size, flags);
    if (got >= 0 || errno != EAGAIN)
        return got;
    struct pollfd one = {fd, POLLIN, 0};
    poll(&one, 1, 1);
    return ask(fd, buffer, size, flags);
}
