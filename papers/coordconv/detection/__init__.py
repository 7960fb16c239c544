"""Detection on scattered digits: a region-proposal network with and without coordinates (Table 1)."""
