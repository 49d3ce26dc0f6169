"""Does holding the weights beat a per-record likelihood ratio on outputs? One protocol, one answer a zoo."""
