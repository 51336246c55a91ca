// Command program prints its version.
package main

import (
	"fmt"

	"github.com/k8s-ovs/k8s-ovs/pkg/version"
)

func main() { fmt.Print(version.String()) }
