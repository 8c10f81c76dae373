// Package image is the stored state of processes at an epoch: vocabulary,
// file format and store.
package image
