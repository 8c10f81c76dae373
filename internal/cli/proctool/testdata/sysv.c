// System V objects: a segment with a key that two processes share, one that
// was removed and is mapped still, one that nobody has mapped; semaphores;
// queues with messages of several types. All of it changes at every step.
#include "fixture.h"
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>

enum { SIZE = 300000 };
struct message { long type; char text[80]; };

static void pattern(unsigned char *p, int n, int s) {
  for (int i = 0; i < n; i += 97) p[i] = (unsigned char)(i + 3 * s);
}

static int matches(unsigned char *p, int n, int s) {
  for (int i = 0; i < n; i += 97)
    if (p[i] != (unsigned char)(i + 3 * s)) return 0;
  return 1;
}

int main(void) {
  int shared = shmget(0x4c414d, SIZE, IPC_CREAT | IPC_EXCL | 0600), gone = shmget(IPC_PRIVATE, 5000, 0600);
  int loose = shmget(0x4c414e, 9000, IPC_CREAT | 0640), sem = semget(0x51, 3, IPC_CREAT | 0600);
  int queue = msgget(0x52, IPC_CREAT | 0600), extra = -1, status;
  need(shared >= 0 && gone >= 0 && loose >= 0 && sem >= 0 && queue >= 0);
  unsigned char *a = shmat(shared, 0, 0), *b = shmat(shared, 0, SHM_RDONLY), *g = shmat(gone, 0, 0);
  need(a != (void *)-1 && b != (void *)-1 && g != (void *)-1 && shmctl(gone, IPC_RMID, 0) == 0);
  pid_t kid = fork();
  if (kid == 0) { // answers every change of a[1] in a[2], by way of a semaphore
    for (;;) {
      struct sembuf take = {2, -1, 0};
      while (semop(sem, &take, 1) < 0) {}
      if (a[1] == 255) _exit(0);
      a[2] = (unsigned char)(a[1] + 1);
      struct sembuf give = {1, 1, 0};
      need(semop(sem, &give, 1) == 0);
    }
  }
  for (int s = 0; s < 12; s++) {
    pattern(a + 4096, SIZE - 4096, s);
    pattern(g, 5000, s + 1);
    unsigned char *l = shmat(loose, 0, 0);
    need(l != (void *)-1);
    pattern(l, 9000, s + 2);
    need(shmdt(l) == 0 && semctl(sem, 0, SETVAL, 100 + s) == 0);
    struct message m = {.type = 1 + s % 3};
    snprintf(m.text, sizeof m.text, "message %d", s);
    need(msgsnd(queue, &m, strlen(m.text) + 1, 0) == 0);
    if (s % 4 == 3) { // the oldest of one type is taken
      need(msgrcv(queue, &m, sizeof m.text, 1 + (s - 3) % 3, IPC_NOWAIT) > 0);
      if (s == 3) need(m.type == 1 && !strcmp(m.text, "message 0"));
    }
    if (extra >= 0) need(shmctl(extra, IPC_RMID, 0) == 0 && semctl(extra, 0, GETVAL) < 0);
    extra = shmget(0x600 + s, 4096, IPC_CREAT | IPC_EXCL | 0600);
    need(extra >= 0);
    step(s);
    need(matches(b + 4096, SIZE - 4096, s) && matches(g, 5000, s + 1));
    l = shmat(loose, 0, SHM_RDONLY);
    need(l != (void *)-1 && matches(l, 9000, s + 2) && shmdt(l) == 0);
    need(semctl(sem, 0, GETVAL) == 100 + s && semget(0x51, 3, 0) == sem && shmget(0x4c414d, SIZE, 0) == shared);
    need(shmget(0x600 + s, 4096, 0) == extra && msgget(0x52, 0) == queue);
    a[1] = (unsigned char)s;
    struct sembuf ask = {2, 1, 0}, answer = {1, -1, 0};
    need(semop(sem, &ask, 1) == 0);
    while (semop(sem, &answer, 1) < 0) {}
    need(b[2] == (unsigned char)(s + 1));
    struct msqid_ds ds;
    need(msgctl(queue, IPC_STAT, &ds) == 0 && (int)ds.msg_qnum == s + 1 - (s + 1) / 4);
    struct shmid_ds sd;
    need(shmctl(shared, IPC_STAT, &sd) == 0 && sd.shm_segsz == SIZE && sd.shm_nattch == 4 && (sd.shm_perm.mode & 0777) == 0600);
  }
  gate();
  a[1] = 255;
  struct sembuf ask = {2, 1, 0};
  need(semop(sem, &ask, 1) == 0 && waitpid(kid, &status, 0) == kid && status == 0);
  need(shmctl(shared, IPC_RMID, 0) == 0 && shmctl(loose, IPC_RMID, 0) == 0 && shmctl(extra, IPC_RMID, 0) == 0);
  need(semctl(sem, 0, IPC_RMID) == 0 && msgctl(queue, IPC_RMID, 0) == 0);
  printf("fine\n");
  return 0;
}
