package replica

import (
	"fmt"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/check"
)

// More differences than are listed are counted, as far as no pack may have made them.
func TestLackingMoreThanListed(t *testing.T) {
	const more = 50
	for _, c := range []struct{ order, want string }{
		{"order 16 9", fmt.Sprintf("compared with up, %d rows, %d differences on [S1]", check.MaxFound+more, check.MaxFound+more)},
		{"order 16 13", fmt.Sprintf("failed with up, %d rows, %d differences on [S1], stuck [], note \"%d differences are not told", check.MaxFound+more, check.MaxFound, more)},
	} {
		s := newConversation(t)
		var has strings.Builder
		for i := range check.MaxFound + more {
			fmt.Fprintf(&has, " %d@10", 2*(i+1))
		}
		for _, line := range []string{"table S1:U S1:U", "has" + has.String(), "begin backup=20", "announce", "ready up9", "check 0 max=20 upstream=9",
			"answer packed=0", "answer", "answer packed=0", c.order, "order"} {
			s.run(line)
		}
		if all := strings.Join(s.out, "\n"); !strings.Contains(all, c.want) {
			t.Errorf("after %s: no %q in\n%s", c.order, c.want, all[max(0, len(all)-500):])
		}
	}
}
