"""The host's side of a call: `door.call` finds its plan or binds it, `bind.bind` checks and decides, a plan runs."""
