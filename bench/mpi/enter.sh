#!/bin/sh
# enter.sh [-x] NODE COMMAND...: what mpiexec.hydra starts its proxies with, in
# place of ssh. ip also mounts the /sys of that node, where MPI looks for links.
[ "$1" = -x ] && shift
node=$1
shift
exec ip netns exec "$node" sh -c "$*"
