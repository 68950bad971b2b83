// None: nothing is linked.
