// Regular files: appended, overwritten behind an offset, shared descriptions,
// close-on-exec, high numbers, directories, devices; directory, umask, limits,
// names.
#include "fixture.h"
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

int main(void) {
  char name[16] = {0}, cwd[4096], now[4096];
  need(mkdir("sub", 0700) == 0 || access("sub", F_OK) == 0);
  int log = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600);
  int data = open("data", O_RDWR | O_CREAT, 0600);
  int twin = dup(data), high = dup2(data, 200);
  int other = open("data", O_RDONLY | O_CLOEXEC);
  int dir = open("sub", O_RDONLY | O_DIRECTORY), null = open("/dev/null", O_WRONLY);
  int zero = open("/dev/zero", O_RDONLY), self = open("/proc/self/statm", O_RDONLY), whole = open("/proc/uptime", O_RDONLY);
  need(self >= 0 && whole >= 0);
  need(log >= 0 && data >= 0 && other >= 0 && dir >= 0 && null >= 0 && zero >= 0);
  umask(027);
  need(prctl(PR_SET_NAME, "fixture-name") == 0);
  struct rlimit lim = {100, 150};
  need(setrlimit(RLIMIT_CORE, &lim) == 0);
  need(chdir("sub") == 0 && getcwd(cwd, sizeof cwd));
  for (int s = 0; s < 12; s++) {
    char line[32];
    int n = sprintf(line, "line %d\n", s);
    need(write(log, line, n) == n && write(twin, line, n) == n);
    step(s);
  }
  need(chdir("..") == 0);
  gate();
  need(chdir("sub") == 0);
  need(getcwd(now, sizeof now) && !strcmp(cwd, now));
  need(prctl(PR_GET_NAME, name) == 0 && !strcmp(name, "fixture-name"));
  need(umask(0) == 027);
  struct rlimit got;
  need(getrlimit(RLIMIT_CORE, &got) == 0 && got.rlim_cur == 100 && got.rlim_max == 150);
  off_t at = lseek(data, 0, SEEK_CUR);
  need(at == lseek(200, 0, SEEK_CUR) && at == lseek(twin, 0, SEEK_CUR) && lseek(other, 0, SEEK_CUR) == 0);
  need(fcntl(other, F_GETFD) == FD_CLOEXEC && fcntl(high, F_GETFD) == 0);
  need((fcntl(log, F_GETFL) & (O_APPEND | O_ACCMODE)) == (O_APPEND | O_WRONLY));
  char text[1024] = {0}, want[1024] = {0};
  for (int s = 0; s < 12; s++) sprintf(want + strlen(want), "line %d\n", s);
  need(read(other, text, 1000) == (ssize_t)strlen(want) && !strcmp(text, want));
  int again = open("../log", O_RDONLY);
  memset(text, 0, sizeof text);
  need(read(again, text, 1000) == (ssize_t)strlen(want) && !strcmp(text, want));
  need(write(null, "x", 1) == 1 && read(zero, text, 4) == 4 && text[0] == 0);
  need(pread(self, text, 100, 0) > 10 && pread(whole, text, 100, 0) > 3);
  struct stat st;
  need(fstat(dir, &st) == 0 && S_ISDIR(st.st_mode));
  printf("fine\n");
  return 0;
}
