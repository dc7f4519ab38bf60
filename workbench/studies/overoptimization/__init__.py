"""How the gold reward falls while the proxy rises: notebook 10."""
