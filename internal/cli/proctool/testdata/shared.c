// Memory shared between processes: anonymous, a memfd, a file, a file in
// /dev/shm that has no name any more; counted up by parent and child in turn.
#include "fixture.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>

int main(void) {
  const int prot = PROT_READ | PROT_WRITE;
  int f = open("shared", O_RDWR | O_CREAT | O_TRUNC, 0600), m = memfd_create("memory", MFD_CLOEXEC);
  char name[64];
  sprintf(name, "/dev/shm/lam-fixture-%d-%ld", getpid(), (long)time(NULL));
  int gone = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
  need(f >= 0 && m >= 0 && gone >= 0 && unlink(name) == 0);
  need(!ftruncate(f, 65536) && !ftruncate(m, 1 << 20) && !ftruncate(gone, 65536));
  volatile int *v[4];
  v[0] = mmap(0, 65536, prot, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  v[1] = mmap(0, 1 << 20, prot, MAP_SHARED, m, 0);
  v[2] = mmap(0, 65536, prot, MAP_SHARED, f, 0);
  v[3] = mmap(0, 65536, prot, MAP_SHARED, gone, 0);
  close(gone);
  int up[2], down[2];
  need(pipe(up) == 0 && pipe(down) == 0);
  pid_t kid = fork();
  if (kid == 0) {
    char c;
    close(down[1]);
    while (read(down[0], &c, 1) == 1) {
      for (int k = 0; k < 4; k++) v[k][1000] += 1;
      need(write(up[1], "x", 1) == 1);
    }
    _exit(0);
  }
  char c;
  for (int s = 0; s < 12; s++) {
    for (int k = 0; k < 4; k++) v[k][1000] += 10;
    need(write(down[1], "x", 1) == 1 && read(up[0], &c, 1) == 1);
    for (int k = 0; k < 4; k++) need(v[k][1000] == 11 * (s + 1));
    step(s);
  }
  gate();
  for (int k = 0; k < 4; k++) need(v[k][1000] == 11 * 12 && v[k][2000] == 0);
  int back;
  need(pread(m, &back, 4, 4000) == 4 && back == 132);
  close(down[1]);
  int ws;
  need(waitpid(kid, &ws, 0) == kid && ws == 0);
  printf("fine\n");
  return 0;
}
