// Holds a lock of "data" in step 0, gives it up and overwrites the file when
// "go" is there; ends at the gate.
#include "fixture.h"
#include <fcntl.h>
#include <string.h>

int main(void) {
  char text[4096];
  struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 3, .l_len = 4};
  memset(text, 'a', sizeof text);
  int data = open("data", O_RDWR | O_CREAT, 0600), log = open("log", O_WRONLY | O_CREAT, 0600);
  need(data >= 0 && log >= 0 && pwrite(data, text, sizeof text, 0) == sizeof text && write(log, text, 100) == 100);
  need(fcntl(data, F_SETLK, &l) == 0);
  step(0);
  while (access("go", F_OK)) pause_ms(2);
  need(write(log, text, 100) == 100);
  l.l_type = F_UNLCK;
  need(fcntl(data, F_SETLK, &l) == 0 && pwrite(data, "b", 1, 77) == 1);
  step(1);
  gate();
  printf("fine\n");
  return 0;
}
