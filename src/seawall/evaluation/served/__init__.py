"""A model behind a completions endpoint, compared with local weights; `seawall verify` and the engines use it.

client.py    requests by token ids: log probabilities of given tokens, greedy replies
verdict.py   differences of log probabilities and replies, and the rule that names another model
probes.py    prompts for the comparison, and the rule before an engine's first reply is used
view.py      the result as JSON, facts and lines
process.py   a vLLM server of our own: started, waited for
keeper.py    the process between: ends the server with its workers when ours ends
"""
