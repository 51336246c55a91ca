package topology

import (
	"encoding/json"
	"fmt"
	"testing"
)

// BenchmarkNamespaces reads and writes the records of 10,000 namespaces.
func BenchmarkNamespaces(b *testing.B) {
	var names []string
	var records [][]byte
	for i := range 10000 {
		names = append(names, fmt.Sprintf("ns-%d", i))
		records = append(records, fmt.Appendf(nil, `{"NetName":"ns-%d","NetID":%d,"Action":"","Namespace":"","Effective":%d,"UID":"5f9c2f0e-6f43-4c0c-9d7c-%012d"}`, i, 100+i, 100+i, i))
	}
	b.ReportAllocs()
	for b.Loop() {
		for i, name := range names {
			n, err := ParseNamespace(name, records[i])
			if err != nil {
				b.Fatal(err)
			}
			if _, err := json.Marshal(n); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkNodes reads and writes the records of 1,000 nodes.
func BenchmarkNodes(b *testing.B) {
	var names []string
	var records [][]byte
	for i := range 1000 {
		names = append(names, fmt.Sprintf("198.18.%d.%d", i/250, 1+i%250))
		records = append(records, fmt.Appendf(nil, `{"Host":"n%d","HostIP":"%s","Subnet":"172.%d.%d.0/24","Assign":false,"UID":"5f9c2f0e-6f43-4c0c-9d7c-%012d"}`, i, names[i], 16+i/250, i%250, i))
	}
	b.ReportAllocs()
	for b.Loop() {
		for i, name := range names {
			n, err := ParseNode(name, records[i])
			if err != nil {
				b.Fatal(err)
			}
			if _, err := json.Marshal(n); err != nil {
				b.Fatal(err)
			}
		}
	}
}
