// Command report makes the table of attacks from what the tests recorded:
//
//	report -version V ROWS... > ATTACKS.md
//
// It fails where an attack has no good result, after it has written the table.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/k8s-ovs/k8s-ovs/test/attacks"
)

func main() {
	version := flag.String("version", "", "of the code under attack")
	flag.Parse()
	if err := report(*version, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "attacks:", err)
		os.Exit(1)
	}
}

func report(version string, paths []string) error {
	var rows []attacks.Row
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		more, err := attacks.Read(f)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		rows = append(rows, more...)
	}
	if len(rows) == 0 {
		return errors.New("no attack was tried")
	}
	failed := attacks.Markdown(os.Stdout, version, rows)
	for _, r := range attacks.Merge(rows) {
		failed = errors.Join(failed, r.Check())
	}
	return failed
}
