"""What stands around an upstream: each layer is an `Upstream` made of another, one a file.

Entering an upstream means that it accepted and has begun to answer. What goes wrong before that is
a layer's to mend: nothing has gone out to the client yet. What goes wrong afterwards is the end of
the answer, and no layer asks again. Around each of several upstreams they stand in this order, from
outside to inside:

    Draining           reads an answer on whose client has left, where that is set
    Choices            asks once for each of the answers that a request wants
    Fallback           chooses among the upstreams of a model, and goes on to the next
      Retry            asks the same one again
        Target         gives the model its name there, and sets fields
          Limit        lets so many chats in at once; the others wait for their turn
            Breaker    leaves an upstream alone that fails (and says so ahead of the Limit, too)
              Named    notes who is asked
                JSONAnswers      at a web chat, which knows none of these, also where it is the
                  StopSequences  only upstream
                    EmulatedTools
                      TokenLimit
                        the upstream itself

`EstimatedUsage`, where it is asked for, stands around what an upstream gives in the end.
"""
