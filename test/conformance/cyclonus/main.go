// cyclonus runs the cases of cyclonus (https://github.com/mattfenwick/cyclonus) against the cluster of
// the current kubeconfig. It is that tool's command "generate" with what it leaves out: all that a pod
// asks is one command in that pod (worker/), in place of one for each question.
package main

import (
	"flag"
	"fmt"
	"log"
	"strings"

	"github.com/mattfenwick/cyclonus/pkg/connectivity"
	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/kube"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

var (
	namespaces = []string{"x", "y", "z"}
	pods       = []string{"a", "b", "c"}
	ports      = []int{80, 81}
	protocols  = []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP}
)

func main() {
	include := flag.String("include", "", "only cases with one of these tags, with commas between them; empty: all")
	junit := flag.String("junit", "cyclonus.xml", "`file` that gets what came out")
	flag.Parse()
	if err := run(*include, *junit); err != nil {
		log.Fatal(err)
	}
}

func run(include, junit string) error {
	var tags []string
	if include != "" {
		tags = strings.Split(include, ",")
	}
	if err := generator.ValidateTags(tags); err != nil {
		return err
	}
	cluster, err := connect()
	if err != nil {
		return err
	}
	resources, err := probe.NewDefaultResources(cluster, namespaces, pods, ports, protocols, nil, 120, true, "")
	if err != nil {
		return err
	}
	pod, err := resources.GetPod("z", "c")
	if err != nil {
		return err
	}
	cases := generator.NewTestCaseGenerator(true, pod.IP, namespaces, tags, nil).GenerateTestCases()
	// A pod always reaches itself, whatever a policy says: loopback is left out.
	interpreter := connectivity.NewInterpreter(cluster, resources, &connectivity.InterpreterConfig{
		ResetClusterBeforeTestCase:       true,
		VerifyClusterStateBeforeTestCase: true,
		KubeProbeRetries:                 1,
		PerturbationWaitSeconds:          2,
		JobTimeoutSeconds:                1,
		IgnoreLoopback:                   true,
		BatchJobs:                        true,
	})
	printer := &connectivity.Printer{IgnoreLoopback: true, JunitResultsFile: junit}
	for i, c := range cases {
		fmt.Printf("case %d of %d: %s\n", i+1, len(cases), c.Description)
		for _, step := range c.Steps {
			step.Probe.Mode = generator.ProbeModePodIP
		}
		result := interpreter.ExecuteTestCase(c)
		if result.Err != nil {
			return fmt.Errorf("case %d: %w", i+1, result.Err)
		}
		printer.PrintTestCaseResult(result)
	}
	printer.PrintSummary()
	return nil
}

// connect is cyclonus' client without client-go's usual five requests a second: each case begins
// with some thirty.
func connect() (*kube.Kubernetes, error) {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &kube.Kubernetes{ClientSet: set, RestConfig: config}, nil
}
