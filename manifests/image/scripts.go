package main

import _ "embed"

//go:embed await-release
var awaitRelease string

//go:embed start-ovsdb-server
var startOVSDBServer string

//go:embed start-ovs-vswitchd
var startOVSVswitchd string

// scripts start and stop Open vSwitch in the containers of the openvswitch variant.
var scripts = map[string]string{
	"await-release":      awaitRelease,
	"start-ovsdb-server": startOVSDBServer,
	"start-ovs-vswitchd": startOVSVswitchd,
}
