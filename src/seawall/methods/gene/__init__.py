"""SafeGene (arXiv 2606.06519): a family's safety as an adapter that is extracted once and grafted onto its siblings."""
