package cli

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/k8s-ovs/k8s-ovs/netns/internal/act"
	"github.com/k8s-ovs/k8s-ovs/netns/internal/view"
)

func (p *program) confirmAddress() *cobra.Command {
	var o act.ConfirmOptions
	var ip netip.Addr
	cmd := &cobra.Command{
		Use:   "confirm NODE ADDRESS",
		Short: "Say that an address is a Kubernetes node's",
		Long: `Confirm leaves in the records that ADDRESS is an address of the Kubernetes node
NODE. A kubelet reports its node's addresses as it likes, so the controller moves a
node's place in the network to another address only when nobody reports from the old
one any more, or when an operator has confirmed the new one.

The address of another node cannot be confirmed: delete that Node first. One of a host
outside Kubernetes can, with --force. A confirmation that the node does not use stands
until --withdraw takes it back.`,
		Example: "  netns nodes confirm n1 192.0.2.9",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := arguments("NODE", "ADDRESS")(cmd, args); err != nil {
				return err
			}
			if o.Force && o.Withdraw {
				return errors.New("--force and --withdraw exclude each other")
			}
			var err error
			if ip, err = netip.ParseAddr(args[1]); err != nil {
				return fmt.Errorf("ADDRESS %q is not an IP address", args[1])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			st, err := p.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer st.Close()
			c, err := act.Confirm(cmd.Context(), st, args[0], ip, o)
			if err != nil {
				return err
			}
			return print(p, c, view.WriteConfirmation)
		},
	}
	cmd.Flags().BoolVar(&o.Force, "force", false, "confirm the address also where a host outside Kubernetes has it")
	cmd.Flags().BoolVar(&o.Withdraw, "withdraw", false, "take the confirmation back")
	return cmd
}
