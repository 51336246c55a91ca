// Package version says which build of k8s-ovs a program is.
//
// It is pure: it reads what the linker and the Go tool put into the binary.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Version is the release. A release build sets it:
//
//	go build -ldflags "-X github.com/k8s-ovs/k8s-ovs/pkg/version.Version=v1.2.3"
//
// It is empty in other builds: [Get] then falls back on what the Go tool
// recorded.
var Version string

// unknown stands where a build recorded nothing, as test binaries do.
const unknown = "unknown"

// Info is what is known about a build.
type Info struct {
	// Version is the release, or the module's pseudo version, or "unknown".
	Version string `json:"version"`
	// Commit is the version-control revision, "unknown" where none was recorded.
	Commit string `json:"commit"`
	// Modified reports that the tree had changes that were not committed.
	Modified bool `json:"modified"`
	// Go is the version of the Go tool, such as "go1.26.0".
	Go string `json:"go"`
	// Platform is the operating system and architecture, such as "linux/amd64".
	Platform string `json:"platform"`
}

// Get is the build of the running program.
func Get() Info {
	build, _ := debug.ReadBuildInfo()
	return from(Version, build)
}

// String is the version alone: what goes into logs, records and metrics.
func String() string { return Get().Version }

// String is one line for people.
func (i Info) String() string {
	commit := i.Commit
	if len(commit) > 12 {
		commit = commit[:12]
	}
	if i.Modified {
		commit += ", modified"
	}
	return fmt.Sprintf("%s (commit %s, %s, %s)", i.Version, commit, i.Go, i.Platform)
}

// from computes the answer from the linked version and the Go tool's record,
// which is nil in a binary built without modules.
func from(linked string, build *debug.BuildInfo) Info {
	info := Info{
		Version:  linked,
		Commit:   unknown,
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if build != nil {
		for _, s := range build.Settings {
			switch s.Key {
			case "vcs.revision":
				info.Commit = s.Value
			case "vcs.modified":
				info.Modified = s.Value == "true"
			}
		}
		// "(devel)" says no more than "unknown" does.
		if info.Version == "" && build.Main.Version != "(devel)" {
			info.Version = build.Main.Version
		}
	}
	if info.Version == "" {
		info.Version = unknown
	}
	return info
}
