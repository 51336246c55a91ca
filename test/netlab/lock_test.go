package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// TestLockFileRemoved: the folder goes while others wait for the lock in it, as
// when the last lab is taken down while the next comes up. Whoever gets a lock
// must have one that keeps the others out.
func TestLockFileRemoved(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	path := filepath.Join(root, "lock")
	var inside atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := 0; n < 200; {
				err := os.MkdirAll(root, 0o755)
				var unlock func()
				if err == nil {
					unlock, err = lockFile(path)
				}
				if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrExist) {
					continue // as lockRoot does
				}
				if err != nil {
					t.Error(err)
					return
				}
				n++
				if inside.Add(1) != 1 {
					t.Error("two hold the lock")
				}
				if _, err := os.Stat(root); err != nil {
					t.Errorf("with the lock held: %v", err)
				}
				inside.Add(-1)
				gone := fmt.Sprintf("%s.%d.%d", root, i, n)
				if err := os.Rename(root, gone); err != nil {
					t.Error(err)
				}
				_ = os.RemoveAll(gone)
				unlock()
			}
		})
	}
	wg.Wait()
}
