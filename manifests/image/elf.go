package main

import (
	"debug/elf"
	"fmt"
	"path/filepath"
	"strings"
)

// libraryDirs is where ld.so(8) looks without configuration, and where Debian
// has the libraries of one architecture.
var libraryDirs = []string{"/lib/*-linux-gnu*", "/usr/lib/*-linux-gnu*", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}

// sharedLibraries is what the program loads, with the dynamic linker: path in
// the image -> path on this machine. A static program loads nothing.
func sharedLibraries(program string) (map[string]string, error) {
	found := map[string]string{}
	todo := []string{program}
	for len(todo) > 0 {
		file := todo[0]
		todo = todo[1:]
		needs, err := loads(file)
		if err != nil {
			return nil, err
		}
		for _, need := range needs {
			to := inImage(need)
			if _, ok := found[to]; !ok {
				found[to] = need
				todo = append(todo, need)
			}
		}
	}
	return found, nil
}

// loads is what one ELF file names: its interpreter and its DT_NEEDED, as paths.
func loads(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	defer f.Close()
	var paths []string
	if s := f.Section(".interp"); s != nil {
		data, err := s.Data()
		if err != nil {
			return nil, fmt.Errorf("read the interpreter of %s: %w", file, err)
		}
		paths = append(paths, strings.TrimRight(string(data), "\x00"))
	}
	if f.Section(".dynamic") == nil {
		return paths, nil
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("read the libraries of %s: %w", file, err)
	}
	runpath, err := f.DynString(elf.DT_RUNPATH)
	if err != nil {
		return nil, fmt.Errorf("read the library path of %s: %w", file, err)
	}
	for _, name := range needed {
		path := findLibrary(name, append(runpath, libraryDirs...), f.Machine)
		if path == "" {
			return nil, fmt.Errorf("%s needs %s, which is in none of the usual folders", file, name)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// findLibrary is the first library of that name for that machine.
func findLibrary(name string, dirs []string, machine elf.Machine) string {
	for _, dir := range dirs {
		matches, err := filepath.Glob(filepath.Join(dir, name))
		if err != nil {
			continue // a run path with brackets in it
		}
		for _, path := range matches {
			if f, err := elf.Open(path); err == nil {
				same := f.Machine == machine
				f.Close()
				if same {
					return path
				}
			}
		}
	}
	return ""
}

// inImage is a path of this machine where the image has /lib and /lib64 below /usr.
func inImage(path string) string {
	for _, dir := range []string{"/lib/", "/lib64/"} {
		if strings.HasPrefix(path, dir) {
			return "/usr" + path
		}
	}
	return path
}
