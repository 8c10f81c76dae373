#!/bin/sh
# plain.sh NODES MTU ENTER ARGS...: mpiexec.hydra ARGS on NODES plain nodes:
# network namespaces that are joined by a bridge and a veth pair each. It is
# started as pid 1 of new user, network, mount and pid namespaces, which take
# everything here with them when they end.
set -e
nodes=$1 mtu=$2 enter=$3
shift 3
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run # for ip netns
ip link set lo up
ip link add br0 mtu "$mtu" type bridge mcast_snooping 0
ip address add 10.99.255.254/16 dev br0
ip link set br0 up
hosts=
i=0
while [ $i -lt "$nodes" ]; do
	i=$((i + 1))
	ip netns add n$i
	ip link add v$i mtu "$mtu" master br0 type veth peer name eth0 mtu "$mtu" netns n$i
	ip link set v$i up
	ip -n n$i address add 10.99.0.$i/16 dev eth0
	ip -n n$i link set lo up
	ip -n n$i link set eth0 up
	hosts=$hosts${hosts:+,}n$i
done
exec mpiexec.hydra -localhost 10.99.255.254 -launcher ssh -launcher-exec "$enter" -hosts "$hosts" "$@"
