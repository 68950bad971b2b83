"""Language models of several families, each written once over the arrays of any framework."""
