// worker asks, from inside of a pod, all that one probe of cyclonus wants to know of that pod, in the place of
// cyclonus' own worker: that starts `agnhost connect` for each of 36 questions, with nine pods some 300 processes for
// each case, and what they leave of two processors is not enough for answers within the second that each question has.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mattfenwick/cyclonus/pkg/worker"
)

// As `agnhost connect` has them, and what it is asked with.
const (
	patience = time.Second
	tries    = 2
)

func main() {
	jobs := flag.String("jobs", "", "the questions, a `JSON` object")
	flag.Parse()
	if err := run(*jobs); err != nil {
		log.Fatal(err)
	}
}

func run(jobs string) error {
	var batch worker.Batch
	if err := json.Unmarshal([]byte(jobs), &batch); err != nil {
		return fmt.Errorf("the questions: %w", err)
	}
	answers := make([]*worker.Result, len(batch.Requests))
	var all sync.WaitGroup
	for i, r := range batch.Requests {
		all.Go(func() {
			answers[i] = &worker.Result{Request: r}
			for range tries {
				err := ask(strings.ToLower(string(r.Protocol)), r.Address())
				if err == nil {
					answers[i].Error = ""
					return
				}
				answers[i].Error = err.Error()
			}
		})
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(answers)
}

// ask connects, and by UDP wants an answer.
func ask(network, address string) error {
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	if network != "udp" {
		return nil
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hostname\n")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1024))
	return err
}
