// Package faultpoint names the places between whose changes of the world a program may be
// killed: after each of them a test does so, and looks what the next start makes of it. In a
// program that is built as usual a place is nothing at all; one that is built with the tag
// faultpoints tells each place that it comes by, and dies at the one that it is told to.
//
// A place is behind a change that outlives the program: a file, a row, a flow, a device, a
// record, an answer. Its name is the same each time: no pod's, no number.
package faultpoint
