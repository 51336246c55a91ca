package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/k8s-ovs/k8s-ovs/test/netlab"
	"github.com/k8s-ovs/k8s-ovs/test/netlab/probe"
)

func (t *tool) status() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "status [NAMESPACE/NAME]",
		Short: "Show the lab's nodes and pods",
		Long: `Shows the lab's nodes and pods. -o json prints
  {"name", "etcd": {"endpoints", "prefix"},
   "nodes": [{"name", "netns", "vtep", "ovsRunDir"}],
   "pods": [{"namespace", "name", "node", "ip", "netns"}]}
and -o ip the address of one pod.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			st, err := l.Status()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				if st.Pods, err = onePod(l, args[0]); err != nil {
					return err
				}
			}
			switch output {
			case "json":
				e := json.NewEncoder(os.Stdout)
				e.SetIndent("", "  ")
				return e.Encode(st)
			case "ip":
				for _, p := range st.Pods {
					fmt.Println(p.IP)
				}
				return nil
			case "table":
				return printStatus(st)
			}
			return fmt.Errorf("-o %s: table, json or ip", output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json or ip")
	return c
}

func onePod(l *netlab.Lab, arg string) ([]netlab.PodStatus, error) {
	namespace, name, err := netlab.ParsePodName(arg)
	if err != nil {
		return nil, err
	}
	p, err := l.Pod(namespace, name)
	if err != nil {
		return nil, err
	}
	return []netlab.PodStatus{{Namespace: p.Namespace, Name: p.Name, Node: p.Node, IP: p.IP, Netns: p.Netns}}, nil
}

func printStatus(st netlab.Status) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	var b strings.Builder
	fmt.Fprintf(&b, "LAB\tETCD\n%s\t%s%s\n\n", st.Name, strings.Join(st.Etcd.Endpoints, ","), st.Etcd.Prefix)
	b.WriteString("NODE\tNETNS\tVTEP\tOVS\n")
	for _, n := range st.Nodes {
		fmt.Fprintf(&b, "%s\t%s\t%s\t%s\n", n.Name, n.Netns, n.VTEP, n.OVSRunDir)
	}
	if len(st.Pods) > 0 {
		b.WriteString("\nPOD\tNODE\tADDRESS\tNETNS\n")
	}
	for _, p := range st.Pods {
		fmt.Fprintf(&b, "%s/%s\t%s\t%s\t%s\n", p.Namespace, p.Name, p.Node, p.IP, p.Netns)
	}
	if _, err := fmt.Fprint(w, b.String()); err != nil {
		return err
	}
	return w.Flush()
}

func (t *tool) list() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the labs that are up",
		Args:    cobra.NoArgs,
		Run: func(*cobra.Command, []string) {
			for _, name := range netlab.List() {
				fmt.Println(name)
			}
		},
	}
}

func (t *tool) env() *cobra.Command {
	var node string
	c := &cobra.Command{
		Use:   "env",
		Short: "Print what makes netns and etcdctl use the lab, as an operator or a node: eval $(netlab env)",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			st, err := l.Status()
			if err != nil {
				return err
			}
			env := l.Env(st.Etcd)
			if node != "" {
				if env, err = l.NodeEnv(node); err != nil {
					return err
				}
			}
			for _, v := range env {
				fmt.Println("export " + v)
			}
			return nil
		},
	}
	c.Flags().StringVar(&node, "node", "", "`NODE` whose identity to take")
	return c
}

func (t *tool) ps() *cobra.Command {
	return &cobra.Command{
		Use:   "ps",
		Short: "List the programs that the lab has started",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			procs, err := l.Processes()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
			out := "PROGRAM\tPID\tSTATE\tLOG\n"
			for _, p := range procs {
				out += fmt.Sprintf("%s\t%d\t%s\t%s\n", p.Name, p.PID, map[bool]string{true: "running", false: "ended"}[p.Alive()], p.Log)
			}
			if _, err := fmt.Fprint(w, out); err != nil {
				return err
			}
			return w.Flush()
		},
	}
}

func (t *tool) logs() *cobra.Command {
	var follow bool
	var lines int
	c := &cobra.Command{
		Use:   "logs [PROGRAM...]",
		Short: "Show what programs have printed: controller, n1/agent, n1/ovs-vswitchd, ... (default: controller and agents)",
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			procs, err := l.Processes()
			if err != nil {
				return err
			}
			tail := []string{"-n", fmt.Sprint(lines)}
			if follow {
				tail = append(tail, "-F")
			}
			found := map[string]bool{}
			var files []string
			for _, p := range procs {
				wanted := len(args) == 0 && (p.Name == "controller" || strings.HasSuffix(p.Name, "/agent"))
				for _, a := range args {
					if a == p.Name || a == strings.SplitN(p.Name, "/", 2)[0] {
						wanted, found[a] = true, true
					}
				}
				if wanted {
					files = append(files, p.Log)
				}
			}
			for _, a := range args {
				if !found[a] {
					return fmt.Errorf("lab %s has started no %q (see `netlab ps`)", t.name, a)
				}
			}
			if len(files) == 0 {
				return fmt.Errorf("lab %s runs neither controller nor agents", t.name)
			}
			run := exec.CommandContext(cmd.Context(), "tail", append(tail, files...)...)
			run.Stdout, run.Stderr = os.Stdout, os.Stderr
			return run.Run()
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is printed from now on")
	c.Flags().IntVarP(&lines, "lines", "n", 50, "how many `LINES` of each")
	return c
}

func (t *tool) matrix() *cobra.Command {
	return &cobra.Command{
		Use:   "matrix",
		Short: "Try ping, UDP, TCP and HTTP from every pod to every other",
		Long: `Tries ping, UDP, TCP and HTTP from every pod (rows) to every other (columns).
✓ all arrive, ✗ none does; letters: only these do; !: delivered, but no answer came back.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := netlab.Open(t.name)
			if err != nil {
				return err
			}
			endpoints, err := l.Endpoints()
			if err != nil {
				return err
			}
			if len(endpoints) < 2 {
				return fmt.Errorf("lab %s has %d pods; a matrix takes two (`netlab pod NAMESPACE/NAME --node n1`)", t.name, len(endpoints))
			}
			r, err := probe.Matrix(cmd.Context(), endpoints, probe.AllProtocols)
			if err != nil {
				return err
			}
			return r.Render(os.Stdout)
		},
	}
}
